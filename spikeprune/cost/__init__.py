"""Operations, energy models, sizes and firing rates, counted from spikes and shapes; no network runs here."""
