"""The table of stages: every `use =` a recipe may say."""

from .export import Export
from .fusion.combine import Combine
from .fusion.fuse import Fuse
from .fusion.merge import Merge
from .int8.qat import QuantizationAwareTraining
from .int8.quantize import Quantize
from .learning.distill import Distill
from .learning.finetune import Finetune
from .pruning.prune import Prune
from .pruning.prune_blocks import PruneBlocks
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
