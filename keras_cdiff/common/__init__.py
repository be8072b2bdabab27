"""What every layer of the package uses: checks of arguments."""
