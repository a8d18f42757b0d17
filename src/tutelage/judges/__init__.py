"""Judges: Response -> Judgement.  Rules, reference metrics, safety rules and sums of them know no tensors;
`reward_model` is the one door to them and is never imported from here."""
