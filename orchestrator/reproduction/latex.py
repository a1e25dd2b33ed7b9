"""A reproduced table as LaTeX (booktabs)."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.reproduction.lines import Line, rows
from orchestrator.spec.paper_table import PaperTable

_SPECIAL = {
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "→": r"$\to$"},
    **{one: f"\\{one}" for one in "&%$#_{}"},
}


def escaped(text: str) -> str:
    """A text for LaTeX."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def tabular(lines: Sequence[Line], table: PaperTable, notes: Sequence[str] = ()) -> str:
    """The table without what belongs in its text (where in the paper, protocols, reasons of verdicts), with `notes` as
    comments above."""
    head, *body = rows(lines, table)
    verdict = head.index("verdict")
    for row in body:
        row[verdict] = row[verdict].split(":")[0]
    kept = [i for i, name in enumerate(head) if name not in ("where", "protocol", "ours, by seed")]
    columns = "".join("r" if head[i] in ("published", "mean ± std", "difference") else "l" for i in kept)
    written = [" & ".join(escaped(row[i]) for i in kept) + r" \\" for row in (head, *body)]
    comments = [f"% {note}" for note in (table.description, r"needs \usepackage{booktabs}", *notes)]
    return "\n".join(
        [
            *comments,
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            written[0],
            r"\midrule",
            *written[1:],
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )
