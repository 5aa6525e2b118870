"""What both dialects of batches say of one."""

from dataclasses import dataclass, field

FULL = "token_limit_exceeded"  # more tokens wait in the provider's queue than it lets one have


@dataclass(frozen=True)
class State:
    """A batch as its provider shows it.

    Attributes:
        status: the provider's word.
        ended: nothing more is going to be answered.
        done: how many rows are answered.
        cancelled: somebody stopped it.
        why: of a batch that was refused as a whole.
        full: it was refused because too much is waiting already.
        of_rows: row → why the batch was refused because of it.
        files: where its results are.
    """

    status: str
    ended: bool
    done: int = 0
    cancelled: bool = False
    why: str = ""
    full: bool = False
    of_rows: dict[int, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
