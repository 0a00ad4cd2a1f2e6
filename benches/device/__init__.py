"""What a bundle runs on a device, and what becomes of what it brings back."""
