"""The table of stages: every `use =` a recipe may say."""

from .distill import Distill
from .export import Export
from .finetune import Finetune
from .prune import Prune
from .prune_blocks import PruneBlocks
from .qat import QuantizationAwareTraining
from .quantize import Quantize
from .stage import Stage

STAGES: dict[str, type[Stage]] = {
    "prune": Prune,
    "prune-blocks": PruneBlocks,
    "distill": Distill,
    "finetune": Finetune,
    "qat": QuantizationAwareTraining,
    "export": Export,
    "quantize": Quantize,
}
