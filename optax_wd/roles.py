# SPDX-License-Identifier: Apache-2.0
"""What a leaf is in its model: roles, each a rule that combines like any other.

`standard & ~roles.codebook`, `standard | roles.token_table`. A role is known from the
type of the module that holds the leaf, where the module is at hand, then from the words
of its path, and from its shape where words say nothing.
"""

from optax_wd._where.roles import bias as bias
from optax_wd._where.roles import codebook as codebook
from optax_wd._where.roles import factor as factor
from optax_wd._where.roles import learned_token as learned_token
from optax_wd._where.roles import lora as lora
from optax_wd._where.roles import model_constant as model_constant
from optax_wd._where.roles import position_table as position_table
from optax_wd._where.roles import scale as scale
from optax_wd._where.roles import statistic as statistic
from optax_wd._where.roles import token_table as token_table
from optax_wd._where.roles import unsure as unsure
from optax_wd._where.roles import weight as weight
from optax_wd._where.standard_0_1 import matrices_0_1 as matrices_0_1
from optax_wd._where.standard_0_1 import standard_0_1 as standard_0_1
