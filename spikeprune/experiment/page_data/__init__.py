"""The data of a report page: what a run's files hold, and its final student looked at once more, as a plain dictionary
that `report/page` draws. Where something is not at hand, its place holds `{"missing": sentence}`."""
