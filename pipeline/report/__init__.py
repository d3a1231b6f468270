"""What a person reads: tables in the terminal, pictures, and a page."""
