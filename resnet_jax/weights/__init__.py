"""Loading variables from files, runs and the Hugging Face hub, and saving them."""
