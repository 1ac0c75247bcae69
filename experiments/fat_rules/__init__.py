"""Rules from measured numbers to fat percent, side by side, leave-one-patient-out."""
