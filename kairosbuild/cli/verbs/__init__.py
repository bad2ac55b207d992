"""One verb a file: `main(arguments) -> exit code`."""
