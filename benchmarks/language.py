"""Languages named rightly on articles 21 to 30 of the Universal Declaration of Human Rights.

python benchmarks/language.py udhr.jsonl.gz

The file has one JSON object a line: `bcp47`, and `articles`, a list of 30 lists of paragraphs. A language counts if the
identifier has it, under its code without script and region.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from camelid.data.language import identify, languages
from camelid.data.sources import find_files, read_records

SAME = {"nb": "no", "nn": "no"}
"""The declaration's code → the identifier's, where they write the same language differently."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("declaration", type=Path)
    (file,) = find_files([str(parser.parse_args().declaration)])
    known, right, total = set(languages()), Counter[str](), Counter[str]()
    for record in read_records(file):
        code = record.values["bcp47"].split("-")[0]
        if SAME.get(code, code) not in known:
            continue
        for paragraphs in record.values["articles"][20:30]:
            if text := "\n".join(paragraphs):
                total[code] += 1
                named = identify(text)[0]
                right[code] += SAME.get(named, named) == SAME.get(code, code)
    perfect = sum(right[code] == total[code] for code in total)
    worst = sorted(total, key=lambda code: right[code] / total[code])[:12]
    print(f"{len(total)} languages, {total.total()} articles, {right.total() / total.total():.1%} right")
    print(f"{perfect} languages without a mistake; worst:", ", ".join(f"{c} {right[c]}/{total[c]}" for c in worst))


if __name__ == "__main__":
    main()
