"""The table of stages: every `use =` a recipe may say."""

from .combine import Combine
from .distill import Distill
from .export import Export
from .finetune import Finetune
from .fuse import Fuse
from .merge import Merge
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
    "merge": Merge,
    "fuse": Fuse,
    "combine": Combine,
    "qat": QuantizationAwareTraining,
    "export": Export,
    "quantize": Quantize,
}
