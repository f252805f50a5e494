"""Lua scripts on the pointers by which versions are switched, each a single atomic step in Redis.

A client whose connection ends before the answer comes sends a script again: each then finds what it has done, and says so.
"""

# One atomic step, so that two activations at a time cannot lose the previous version, and a version that is being removed
# is not activated. Activating the active version again keeps the version to roll back to, and changes nothing at all unless
# its model is another one now.
ACTIVATE = """
if redis.call('HGET', KEYS[2], 'fingerprint') ~= ARGV[2] then return 0 end
local current = redis.call('HGET', KEYS[1], 'version')
local previous = current or ''
if current == ARGV[1] then
  if redis.call('HGET', KEYS[1], 'fingerprint') == ARGV[2] then return 1 end
  previous = redis.call('HGET', KEYS[1], 'previous') or ''
end
redis.call('HSET', KEYS[1], 'version', ARGV[1], 'fingerprint', ARGV[2],
           'previous', previous, 'activated_at_ms', ARGV[3])
return 1
"""

# That a version is published is taken back, unless services need it or are about to; nor can it be published from then on, by
# whoever is at it, until that ends.
TAKE_BACK = """
if redis.call('HGET', KEYS[1], 'version') == ARGV[1] or redis.call('HGET', KEYS[1], 'previous') == ARGV[1]
  or redis.call('GET', KEYS[2]) == ARGV[1] then return 0 end
redis.call('SET', KEYS[4], '', 'EX', ARGV[2])
redis.call('DEL', KEYS[3])
return 1
"""

# How far a version is published, unless its states are being removed.
NOTE_PROGRESS = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('HSET', KEYS[3], unpack(ARGV, 2))
return 1
"""

# That it is published, unless its states are being removed, or have been since its progress, KEYS[4], was noted last.
MARK_PUBLISHED = """
local marked = redis.call('HMGET', KEYS[3], 'fingerprint', 'completed_at_ms')
if marked[1] == ARGV[4] and marked[2] == ARGV[#ARGV] then return 1 end
if redis.call('EXISTS', KEYS[1]) == 1 or (ARGV[2] == '1' and redis.call('EXISTS', KEYS[4]) == 0) then return 0 end
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('HSET', KEYS[3], unpack(ARGV, 3))
redis.call('DEL', KEYS[4])
return 1
"""

# The previous version must still be whole: its fingerprint is in what publish declared of it.
ROLL_BACK = """
local now = redis.call('HMGET', KEYS[1], 'version', 'previous', 'activated_at_ms')
local current = now[1]
if current == ARGV[2] and now[2] == ARGV[1] and now[3] == ARGV[4] then return 1 end
if not current or current ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[2], 'fingerprint', ARGV[3],
           'previous', current, 'activated_at_ms', ARGV[4])
return 1
"""

# Made of the revision that services had then: where they have another one now, its items would be lost.
FOLLOW_ITEMS = """
local current = redis.call('GET', KEYS[1]) or ''
if current == ARGV[2] then return 1 end
if current ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""
