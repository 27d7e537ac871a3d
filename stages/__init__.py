"""How one stage turns files into files. The contract is `stages.stage`; `STAGES` lists what there is."""
