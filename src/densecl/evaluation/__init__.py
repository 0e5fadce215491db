"""What a frozen backbone can do."""
