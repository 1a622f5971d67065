"""What an export says of itself: report.json, the page, the model card."""
