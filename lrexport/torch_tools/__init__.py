"""What is done with any torch network, whatever it is for: copying it, making it plain, refusing what cannot be changed."""
