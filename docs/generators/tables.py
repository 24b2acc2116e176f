"""Text in the cells of Markdown tables."""


def cell(text: str) -> str:
    """Put text on one line, and escape the character that separates cells."""
    return " ".join(text.split()).replace("|", r"\|")
