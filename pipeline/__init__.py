"""What runs where, what is read and what is written: datasets in, shards of maps and scores out."""
