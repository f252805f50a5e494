"""Lua scripts on a partition's answers and impressions, each a single atomic step in Redis.

A hash says of each answer, by user and request, which entry of the stream it is, and which of its candidates have been judged:
`1763900000000-0 4 17`. It is written wherever the stream is.
"""

ADD_SHOWN = """
-- KEYS shown. ARGV bytes, seconds to live, then the entry's fields and values.
-- Adds it, the oldest entries making room; the newest stays whatever its size. Gives how many went.
redis.call('XADD', KEYS[1], '*', unpack(ARGV, 3))
redis.call('EXPIRE', KEYS[1], ARGV[2])
local pushed, left = 0, redis.call('XLEN', KEYS[1])
while left > 1 and redis.call('MEMORY', 'USAGE', KEYS[1]) > tonumber(ARGV[1]) do
  left = left - 1
  pushed = pushed + redis.call('XTRIM', KEYS[1], 'MAXLEN', left)
end
return pushed
"""

ADD_ANSWER = """
-- KEYS answered, answers. ARGV bytes, seconds to live, field in answers, then the entry's fields and values: user and request first.
-- Adds it, in the place of one to the same request, the oldest entries making room; the newest stays whatever its size.
-- Gives how many went of which nothing had been judged.
local before = redis.call('HGET', KEYS[2], ARGV[3])
if before then redis.call('XDEL', KEYS[1], string.match(before, '^%S+')) end
redis.call('HSET', KEYS[2], ARGV[3], redis.call('XADD', KEYS[1], '*', unpack(ARGV, 4)))
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[2])
local function taken()
  return redis.call('MEMORY', 'USAGE', KEYS[1]) + redis.call('MEMORY', 'USAGE', KEYS[2])
end
local pushed, left = 0, redis.call('XLEN', KEYS[1])
while left > 1 and taken() > tonumber(ARGV[1]) do
  local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
  local field = (oldest[2][2] or '') .. '\\0' .. (oldest[2][4] or '')
  local id, judged = string.match(redis.call('HGET', KEYS[2], field) or '', '^(%S+)(.*)$')
  if id == oldest[1] then redis.call('HDEL', KEYS[2], field) end
  if id ~= oldest[1] or judged == '' then pushed = pushed + 1 end
  left = left - 1
  redis.call('XTRIM', KEYS[1], 'MAXLEN', left)
end
return pushed
"""

TAKE = """
-- KEYS shown, answers. ARGV of each impression: its entry, the answer's field and entry, how many of the answer's candidates
-- are to be judged, and their places; of one that is not judged, none.
-- Removes it. Gives the places that had not been judged before, and notes them; -1 where it was gone, -2 where its answer is.
local found, at = {}, 1
while at <= #ARGV do
  local field, count = ARGV[at + 1], tonumber(ARGV[at + 3])
  local new = {}
  if redis.call('XDEL', KEYS[1], ARGV[at]) == 0 then
    new = -1
  elseif count > 0 then
    local held = redis.call('HGET', KEYS[2], field)
    local id, judged = string.match(held or '', '^(%S+)(.*)$')
    if id == ARGV[at + 2] then
      local seen = {}
      for place in string.gmatch(judged, '%d+') do seen[place] = true end
      for next = at + 4, at + 3 + count do
        local place = ARGV[next]
        if not seen[place] then table.insert(new, place) end
        seen[place] = true
      end
      if #new > 0 then redis.call('HSET', KEYS[2], field, held .. ' ' .. table.concat(new, ' ')) end
    else
      new = -2
    end
  end
  table.insert(found, new)
  at = at + 4 + count
end
return found
"""
