"""Numbers made words: what the files of a run say about it, and what to do.

`record` holds what is known of a run. Each verdict is a function in `losses`, `features` or `course`, and a row in
`table`. `telling` decides which of them are new to the user while the run goes on.
"""

from densecl.verdicts.record import Record, read_record
from densecl.verdicts.table import VERDICTS, verdicts
from densecl.verdicts.verdict import Found, Row, Verdict

__all__ = ["VERDICTS", "Found", "Record", "Row", "Verdict", "read_record", "verdicts"]
