"""What goes wrong through no fault of the code."""


class RecipeError(Exception):
    """Options, data or files that no training can use. The text is one sentence for the user; it
    names the file or the option and says what to do."""
