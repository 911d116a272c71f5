"""The command of the project: ``python train.py teacher=... student=... method=... quant=... data=...``."""

from kd.launch import main

if __name__ == "__main__":
    main()
