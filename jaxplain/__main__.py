"""`python -m jaxplain`."""

from jaxplain.cli import main

if __name__ == "__main__":
    main()
