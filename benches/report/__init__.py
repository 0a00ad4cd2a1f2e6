"""What a user reads: report.json and report.html, the terminal's tables, numbers in words."""
