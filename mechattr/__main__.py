"""``python -m mechattr``, for where the script isn't on the path."""

from mechattr.cli import main

main()
