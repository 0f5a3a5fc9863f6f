"""The report page of one run or several: one HTML file without a network. A module for each section, drawn from the
plain dictionary that `experiment/report.py` gathers; `document.py` joins them."""
