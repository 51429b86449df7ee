"""What results say, drawn: tables as text, markdown, LaTeX and CSV."""
