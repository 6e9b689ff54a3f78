"""What is found out for errors and for the command line. The rest of harken imports it only when an error asks."""
