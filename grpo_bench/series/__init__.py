"""What the pictures of a study show, as plain numbers from its records: figures and the page draw the same ones."""
