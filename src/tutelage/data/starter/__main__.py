"""`python -m tutelage.data.starter`: the counts of the starter data as a Markdown table."""

from tutelage.data import starter


def table() -> str:
    """One row a task, English and Chinese beside each other, with totals."""
    found = starter.counts()
    tasks = sorted({task for counter in found.values() for task, _ in counter})
    heads = [f"{part} {lang}" for part in starter.NAMES for lang in ("en", "zh")]
    cells = {task: [found[part][task, lang] for part in starter.NAMES for lang in ("en", "zh")] for task in tasks}
    cells["**total**"] = [sum(column) for column in zip(*cells.values(), strict=True)]
    lines = ["| Task | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(heads)]
    return "\n".join(lines + [f"| {task} | " + " | ".join(map(str, row)) + " |" for task, row in cells.items()])


if __name__ == "__main__":
    print(table())
