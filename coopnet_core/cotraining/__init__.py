"""Co-training: error model, hybrid loss, apportionment, trainer."""
