"""Reading annotation and results files as streams, and writing results files."""
