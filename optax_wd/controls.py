# SPDX-License-Identifier: Apache-2.0
"""Controls for ablations of cautious decay: other gates, to compare with.

Each decays as many coordinates or fewer, by another choice: at random, by the raw
gradient, where the step grows the weight, or whole tensors. They are decays like any
other, for `optax.chain` and the ready chains, but none is a method to train with.
"""

from optax_wd._how.methods.gradient_gated import (
    gradient_gated_weight_decay as gradient_gated_weight_decay,
)
from optax_wd._how.methods.inversely_gated import (
    inversely_gated_weight_decay as inversely_gated_weight_decay,
)
from optax_wd._how.methods.randomly_gated import (
    randomly_gated_weight_decay as randomly_gated_weight_decay,
)
from optax_wd._how.methods.tensor_gated import (
    tensor_gated_weight_decay as tensor_gated_weight_decay,
)
