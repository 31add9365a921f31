"""How robust bridges are: attacks on, and surroundings of, the source vectors of saved runs (SCDR, V.C-V.E)."""
