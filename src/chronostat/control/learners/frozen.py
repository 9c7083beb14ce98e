"""What every learner's frozen policy consists of: a network, the scale of what it sees, the limits it keeps."""

from collections.abc import Mapping

from torch import Tensor, nn

from chronostat.control.learners.means_and_tail import Limits
from chronostat.control.learners.memory import Scale
from chronostat.control.learners.tensors import model_state, with_prefix, without_prefix


def frozen_state(model: nn.Module, scale: Scale, limits: Limits) -> dict[str, Tensor]:
    """Only what deciding needs."""
    return {
        **with_prefix("model", model_state(model)),
        **with_prefix("scale", scale.state()),
        **with_prefix("limits", limits.policy_state()),
    }


def load_frozen_state(model: nn.Module, scale: Scale, limits: Limits, state: Mapping[str, Tensor]) -> None:
    """Decide as what gave ``frozen_state`` did."""
    model.load_state_dict(without_prefix("model", state))
    scale.load(without_prefix("scale", state))
    limits.load_policy_state(without_prefix("limits", state))
