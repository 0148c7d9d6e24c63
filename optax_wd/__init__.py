# SPDX-License-Identifier: Apache-2.0
"""Weight decay for JAX, done right.

WHERE     rules over (path, shape, dtype) say which parameters decay
HOW MUCH  a number or a schedule of the step, times a factor per leaf
HOW       a direction and a gate, in any place of any Optax chain
SEE       instruments that show what is asked for, and measure what happens
"""

__version__ = "0.2.0.dev0"

# WHERE
from optax_wd._where.atoms import everything as everything
from optax_wd._where.atoms import min_ndim as min_ndim
from optax_wd._where.atoms import nothing as nothing
from optax_wd._where.atoms import optional as optional
from optax_wd._where.atoms import satisfies as satisfies
from optax_wd._tree.leaves import Leaf as Leaf
from optax_wd._where.matrices import matrices as matrices
from optax_wd._where.modules import mask_of as mask_of
from optax_wd._where.names import contains as contains
from optax_wd._where.names import named as named
from optax_wd._where.names import path as path
from optax_wd._where.names import regex as regex
from optax_wd._where.owners import declared as declared
from optax_wd._where.owners import owned_by as owned_by
from optax_wd._where.rules import Rule as Rule
from optax_wd._where.standard import standard as standard
from optax_wd._where.standard import standard_with as standard_with
from optax_wd._text.parse import parse_rule as parse_rule
from optax_wd import recipes as recipes
from optax_wd import roles as roles

# HOW MUCH
from optax_wd import conversions as conversions
from optax_wd._amount.amounts import remaining_fraction as remaining_fraction
from optax_wd._amount.layers import numbered_layers as numbered_layers
from optax_wd._amount.layers import ordered_layers as ordered_layers
from optax_wd._amount.layerwise import layerwise as layerwise
from optax_wd._amount.schedules import cosine_schedule as cosine_schedule
from optax_wd._amount.schedules import log_time_schedule as log_time_schedule
from optax_wd._amount.schedules import proportional as proportional
from optax_wd._where.values import Table as Table
from optax_wd._amount.spectral import alpha_decay_factors as alpha_decay_factors
from optax_wd._where.values import first_match as first_match

# HOW
from optax_wd import controls as controls
from optax_wd._how.engine import DecayState as DecayState
from optax_wd._how.placement import after_learning_rate as after_learning_rate
from optax_wd._how.engine import decay_along as decay_along
from optax_wd._how.engine import masked_decay as masked_decay
from optax_wd._how.gates import cautious_gate as cautious_gate
from optax_wd._how.methods.cautious import (
    cautious_weight_decay as cautious_weight_decay,
)
from optax_wd._how.methods.anchored import (
    anchored_weight_decay as anchored_weight_decay,
)
from optax_wd._how.methods.averaged import (
    averaged_weight_decay as averaged_weight_decay,
)
from optax_wd._how.methods.l1 import l1_weight_decay as l1_weight_decay
from optax_wd._how.methods.huber import huber_weight_decay as huber_weight_decay
from optax_wd._how.methods.sensitivity_gated import (
    sensitivity_gated_weight_decay as sensitivity_gated_weight_decay,
)
from optax_wd._how.methods.momentum_corrected import (
    momentum_corrected_weight_decay as momentum_corrected_weight_decay,
)
from optax_wd._how.methods.constrained import (
    constrained_weight_decay as constrained_weight_decay,
)
from optax_wd._how.methods.keep_norms import keep_norms as keep_norms
from optax_wd._how.methods.max_norms import max_norms as max_norms
from optax_wd._how.methods.norm_targeted import (
    norm_targeted_weight_decay as norm_targeted_weight_decay,
)
from optax_wd._how.methods.pin_norms import pin_norms as pin_norms
from optax_wd._how.methods.selective import (
    selective_weight_decay as selective_weight_decay,
)
from optax_wd._how.methods.natural import natural_weight_decay as natural_weight_decay
from optax_wd._how.methods.token_aware import (
    token_aware_weight_decay as token_aware_weight_decay,
)
from optax_wd._how.methods.topk_gated import (
    topk_gated_weight_decay as topk_gated_weight_decay,
)
from optax_wd._how.chains.variants import adamc as adamc
from optax_wd._how.chains.in_moments import fadam as fadam
from optax_wd._how.chains.variants import nadamw as nadamw
from optax_wd._how.chains.in_moments import novograd as novograd
from optax_wd._how.chains.variants import sgds as sgds
from optax_wd._how.chains.optimizers import adamw as adamw
from optax_wd._how.chains.optimizers import lion as lion
from optax_wd._how.chains.optimizers import sgdw as sgdw
from optax_wd._how.matrix.optimizers import muon as muon
from optax_wd._how.matrix.optimizers import normuon as normuon
from optax_wd._how.scale import scale_per_leaf as scale_per_leaf
from optax_wd._how.precision import apply_updates as apply_updates

# SEE
from optax_wd._see.audit.assertion import assert_decays as assert_decays
from optax_wd._see.audit.audit import audit as audit
from optax_wd._see.audit.audited import Audit as Audit
from optax_wd._see.audit.audited import AuditRow as AuditRow
from optax_wd._see.describe import describe as describe
from optax_wd._see.matrix_table import describe_matrices as describe_matrices
from optax_wd._see.diff import diff as diff
from optax_wd._see.monitor.metrics import spectrum as spectrum
from optax_wd._see.monitor.monitor import metrics as metrics
from optax_wd._see.monitor.monitor import with_metrics as with_metrics
from optax_wd._see.plot import plot as plot
from optax_wd._see.plot import plot_metrics as plot_metrics
from optax_wd._see.report import Description as Description
