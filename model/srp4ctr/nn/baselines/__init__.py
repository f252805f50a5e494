"""Published click models on exactly the inputs of ours, so that what is compared is the models alone."""

from srp4ctr.nn.baselines.bst import Bst
from srp4ctr.nn.baselines.deepfm import DeepFm
from srp4ctr.nn.baselines.dien import Dien
from srp4ctr.nn.baselines.din import Din
from srp4ctr.nn.baselines.parts import Baseline, BaselineConfig

BASELINES: dict[str, type[Baseline]] = {"deepfm": DeepFm, "din": Din, "dien": Dien, "bst": Bst}

__all__ = ["BASELINES", "Baseline", "BaselineConfig", "Bst", "DeepFm", "Dien", "Din"]
