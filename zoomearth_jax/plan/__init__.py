"""What compiled training programs would take on devices that need not be here."""
