"""What every layer uses: checks of arguments, files, bases of callbacks, TensorBoard events."""
