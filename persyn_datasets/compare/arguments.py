"""How TRL trains a student; apart, since TRL is an extra, and a checkpoint names this class."""

from trl import SFTConfig

from persyn_datasets.store.memory import OneDevice


class Arguments(OneDevice, SFTConfig):
    pass
