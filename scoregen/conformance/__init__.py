"""Every process x target x objective against closed forms: the mathematics (`matrix`) and the command line."""
