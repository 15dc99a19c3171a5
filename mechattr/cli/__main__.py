"""``python -m mechattr.cli``, for where the script isn't on the path."""

from mechattr.cli import main

main()
