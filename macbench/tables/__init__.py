"""What results say, as tables: text, markdown, LaTeX and CSV."""
