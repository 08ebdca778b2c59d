"""The lock that gives way: exclusive, re-entrant, and patient with a holder who takes long."""

import threading
import time

from kvpredict.cache.polite import PoliteLock


def test_it_excludes_and_admits_its_holder_again():
    lock, inside, overlaps, total = PoliteLock(), [0], [0], [0]

    def work():
        for _ in range(2000):
            with lock, lock:
                inside[0] += 1
                overlaps[0] += inside[0] > 1
                seen = total[0]
                len(range(seen))  # a chance to be interrupted between reading and writing
                total[0] = seen + 1
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (overlaps[0], total[0]) == (0, 8000)


def test_one_who_waits_long_gets_it_in_the_end():
    lock, had = PoliteLock(), threading.Event()

    def second():
        with lock:
            had.set()

    with lock:
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        assert not had.is_set()
    thread.join(10)
    assert had.is_set()


def test_an_error_inside_releases_it():
    lock = PoliteLock()
    try:
        with lock:
            raise ValueError
    except ValueError:
        pass
    taken = []
    thread = threading.Thread(target=lambda: taken.append(lock.take(False)))
    thread.start()
    thread.join()
    assert taken == [True]
