"""Lua scripts on one user's keys, each a single atomic step in Redis. All keys of a script are of one partition."""

_OF = """
-- What a command gave; where the key holds something else, an error that names it, for whoever has to mend it.
local function of(key, answer)
  if type(answer) == 'table' and answer.err then error(answer.err .. ' (' .. key .. ')') end
  return answer
end
"""

# What a user's count holds: where it began, where it is, and how often a snapshot has changed the history (where it is left
# out, never). It begins at the server's clock in microseconds, so that it never takes a value again after the user has been
# forgotten: what was still being written then is told from what is true now.
_COUNT = (
    _OF
    + """
local function count_of(stored)
  if not stored then return 0, 0, 0 end
  local first, last, seedings = string.match(stored, '^(%d+) (%d+) ?(%d*)$')
  if not first then error('WRONGTYPE this is no count of events (' .. KEYS[2] .. ')') end
  return tonumber(first), tonumber(last), tonumber(seedings) or 0
end
local function stored_count() return of(KEYS[2], redis.pcall('GET', KEYS[2])) end
"""
)

_CHANGE = (
    _COUNT
    + """
local function begun(stored)
  if stored then return count_of(stored) end
  local now = redis.call('TIME')
  local first = tonumber(now[1] .. string.format('%06d', now[2]))
  return first, first, 0
end
local function set_count(first, last, seedings)
  redis.call('SET', KEYS[2], string.format('%.0f %.0f %.0f', first, last, seedings), 'KEEPTTL')
end
-- The history and its count go together.
local function live(ttl)
  for key = 1, 2 do
    if ttl > 0 then redis.call('EXPIRE', KEYS[key], ttl) else redis.call('PERSIST', KEYS[key]) end
  end
end
"""
)

_HELD = """
local held = of(KEYS[1], redis.pcall('LRANGE', KEYS[1], 0, -1))
local times, ids = {}, {}
for place, entry in ipairs(held) do
  local time, id = string.match(entry, '^%[(%-?%d+),"([^"]*)"')
  -- What cannot be read stays where it is, for whoever encodes the user to say so.
  times[place] = tonumber(time) or times[place - 1] or 0
  if id then ids[id] = true end
end
-- In place of all that is held, without a moment in which there is nothing; a Redis that is full refuses it before anything is changed.
-- So many at once as Lua's stack takes for certain.
local function replace(entries)
  for at = 1, #entries, 1000 do redis.call('RPUSH', KEYS[1], unpack(entries, at, math.min(at + 999, #entries))) end
  redis.call('LTRIM', KEYS[1], -#entries, -1)
end
"""

RECORD = (
    """
-- KEYS history, sequence, stream. ARGV events to keep, seconds to live or 0, user id, then of each event: time, id, bytes.
-- Gives of each event 1 where it is stored, 0 where it was stored before, -1 where it is no newer than all of a full history.
-- One that a snapshot has, without an id, was stored before, too: the same item within the same second, as in SEED. It is there as it
-- was sent from then on, and counts all the same: states that were made before the snapshot came, or of it as the snapshot has it, lack it.
"""
    + _CHANGE
    + _HELD
    + """
local keep, ttl = tonumber(ARGV[1]), tonumber(ARGV[2])
local first, last, seedings = begun(stored_count())
local outcomes, stored, newest, moved = {}, 0, {}, false
local function twin(time, entry)
  local item
  for place = #held, 1, -1 do
    if times[place] <= time - 1000 then return nil end
    if times[place] < time + 1000 and string.match(held[place], '^%[%-?%d+,"",') then
      item = item or cjson.decode(entry)[3]
      if cjson.decode(held[place])[3] == item then return place end
    end
  end
end
-- In its place by time; gives that of the event before it.
local function insert(time, id, entry)
  local place = #held
  while place > 0 and times[place] > time do place = place - 1 end
  table.insert(held, place + 1, entry)
  table.insert(times, place + 1, time)
  ids[id] = true
  return place
end
for at = 4, #ARGV, 3 do
  local time, id, entry = tonumber(ARGV[at]), ARGV[at + 1], ARGV[at + 2]
  local same = not ids[id] and twin(time, entry)
  if same then
    table.remove(held, same)
    table.remove(times, same)
    insert(time, id, entry)
    moved = true
    stored = stored + 1
    table.insert(outcomes, 0)
  elseif ids[id] then
    table.insert(outcomes, 0)
  elseif #held >= keep and time <= times[1] then
    -- Also where it is as old as the oldest: sent again after it went, it would count again.
    table.insert(outcomes, -1)
  else
    if insert(time, id, entry) == #held - 1 then table.insert(newest, entry) else moved = true end
    if #held > keep then
      table.remove(held, 1)
      table.remove(times, 1)
    end
    stored = stored + 1
    table.insert(outcomes, 1)
  end
end
if stored > 0 then
  last = last + stored
  -- First: where it is refused, nothing has been stored.
  of(KEYS[3], redis.pcall('XADD', KEYS[3], '*', 'user', ARGV[3], 'sequence', string.format('%.0f', last)))
end
if moved then
  -- Anew, and once for all late events: LINSERT finds its place by what stands there, and events of a snapshot may be alike.
  replace(held)
elseif stored > 0 then
  redis.call('RPUSH', KEYS[1], unpack(newest))
  redis.call('LTRIM', KEYS[1], -#held, -1)
end
if stored > 0 then set_count(first, last, seedings) end
live(ttl)
return outcomes
"""
)

SEED = (
    """
-- KEYS history, sequence, mark of who was forgotten. ARGV events to keep, seconds to live or 0, the snapshot's events, one a line,
-- oldest first.
-- Acknowledged events that the snapshot lacks keep their places by time. An event that both have stays as it was sent, with
-- its id: the same item within the same second, since snapshots may have whole seconds. Features that an event had in the
-- snapshot before and has none of now, since this version's model reads others, stay for the models that read them.
-- Gives how far a state of the snapshot alone counts, and how often snapshots have changed the history; -1, and nothing is
-- changed, where the user was forgotten.
if redis.call('EXISTS', KEYS[3]) == 1 then return '-1 0' end
"""
    + _CHANGE
    + _HELD
    + """
local keep, ttl = tonumber(ARGV[1]), tonumber(ARGV[2])
local sequence = stored_count()
local snapshot, when = {}, {}
for entry in string.gmatch(ARGV[3], '[^\\n]+') do
  table.insert(snapshot, entry)
  table.insert(when, tonumber(string.match(entry, '^%[(%-?%d+),')))
end
local known, before = {}, nil
for _, entry in ipairs(held) do known[entry] = true end
local function more_of(entry)
  -- Of a new user nothing is looked at, which is most of what seeding one would cost.
  if #held == 0 or known[entry] then return entry end
  if not before then
    before = {}
    for _, old in ipairs(held) do
      local read, content = pcall(cjson.decode, old)
      if read and content[2] == '' then
        local at = string.format('%.0f ', content[1]) .. content[3]
        before[at] = before[at] or {}
        table.insert(before[at], content[4])
      end
    end
  end
  local content = cjson.decode(entry)
  local olds = before[string.format('%.0f ', content[1]) .. content[3]]
  local old = olds and table.remove(olds, 1)
  local names = {}
  for name in pairs(old or {}) do
    if content[4][name] == nil then table.insert(names, name) end
  end
  if #names == 0 then return entry end
  table.sort(names)
  local parts = {}
  for _, name in ipairs(names) do table.insert(parts, cjson.encode(name) .. ':' .. cjson.encode(old[name])) end
  local head = string.sub(entry, 1, -3)
  return head .. (string.sub(head, -1) == '{' and '' or ',') .. table.concat(parts, ',') .. '}]'
end
-- Both are in the order of their times: one look at each, and what is near in time is compared.
local twin, acknowledged, lacking, from = {}, {}, {}, 1
for place, entry in ipairs(held) do
  local id = string.match(entry, '^%[%-?%d+,"([^"]*)"')
  if id and id ~= '' then
    while from <= #snapshot and when[from] <= times[place] - 1000 do from = from + 1 end
    local at, item = from, nil
    lacking[place] = true
    while at <= #snapshot and when[at] < times[place] + 1000 do
      item = item or cjson.decode(entry)[3]
      if not twin[at] and cjson.decode(snapshot[at])[3] == item then
        twin[at], lacking[place] = true, nil
        break
      end
      at = at + 1
    end
    table.insert(acknowledged, place)
  end
end
local merged, new, next = {}, {}, 1
local function add(place)
  table.insert(merged, held[place])
  new[#merged] = lacking[place]
end
for at, entry in ipairs(snapshot) do
  while acknowledged[next] and times[acknowledged[next]] < when[at] do
    add(acknowledged[next])
    next = next + 1
  end
  if not twin[at] then table.insert(merged, more_of(entry)) end
end
for at = next, #acknowledged do add(acknowledged[at]) end
local kept, since = {}, 0
for at = math.max(1, #merged - keep + 1), #merged do
  table.insert(kept, merged[at])
  if new[at] then since = since + 1 end
end
local changed = #kept ~= #held
for place, entry in ipairs(kept) do changed = changed or entry ~= held[place] end
local left = redis.call('PTTL', KEYS[1])
if changed then
  if #kept > 0 then replace(kept) else redis.call('DEL', KEYS[1]) end
end
local counted, seedings = '0', 0
-- Events that the snapshot lacks have a count, even where Redis evicted theirs: else a state without them would not say so.
if sequence or since > 0 then
  local first, last
  first, last, seedings = begun(sequence)
  if not sequence then last = first + since end
  if changed then seedings = seedings + 1 end
  if changed or not sequence then set_count(first, last, seedings) end
  counted = string.format('%.0f', math.max(first, last - since))
end
if ttl == 0 or left < 0 or (#snapshot > 0 and when[#snapshot] > times[#held]) then
  -- A last event that was not known yet is what both live by; publishing the same again adds nothing to it.
  live(ttl)
else
  if changed then redis.call('PEXPIRE', KEYS[1], left) end
  if not sequence then redis.call('PEXPIRE', KEYS[2], left) end
end
return counted .. ' ' .. seedings
"""
)

WRITE_STATE = (
    """
-- KEYS state, sequence, mark of who was forgotten. ARGV state bytes, seconds to live or 0, offset of the sequence in a state,
-- how often snapshots had changed the history when it was read (empty: it was not read).
-- Writes unless what is there is newer and of the same model, or the user has been forgotten since the history was read: then
-- the count is gone, or has begun again after what this state counts. A state that counts nothing says nothing of when it was
-- made, and is not written of anybody who is marked as forgotten.
-- Nor where a snapshot has changed the history since: the count is what it was, and would not tell that events are missing.
-- Gives 1 where it is written, 0 where what is there is newer, -1 where the user was forgotten, -2 where the history is another.
"""
    + _COUNT
    + """
local data, at = ARGV[1], tonumber(ARGV[3])
local mine = #data >= at + 8 and struct.unpack('<i8', data, at + 1) or 0
local first, counted, seedings = count_of(stored_count())
if mine > counted or (mine > 0 and mine < first) then return -1 end
if mine == 0 and redis.call('EXISTS', KEYS[3]) == 1 then return -1 end
if ARGV[4] ~= '' and tonumber(ARGV[4]) ~= seedings then return -2 end
local held = redis.call('GETRANGE', KEYS[1], 0, at + 7)
-- Magic, layout version, size of the header and fingerprint.
if #held == at + 8 and string.sub(held, 1, 24) == string.sub(data, 1, 24) then
  -- What counts more than there is was made before the history went, and is no newer than anything.
  local theirs = struct.unpack('<i8', held, at + 1)
  if theirs > mine and theirs >= first and theirs <= counted then return 0 end
end
if tonumber(ARGV[2]) > 0 then
  redis.call('SET', KEYS[1], data, 'EX', ARGV[2])
else
  redis.call('SET', KEYS[1], data)
end
return 1
"""
)

FORGET = (
    """
-- KEYS history, sequence, mark of who was forgotten, three streams whose entries have the user first, a hash whose fields begin
-- with the user and NUL, states.
-- ARGV user id, seconds that the mark lives.
-- Gives how many keys and entries were removed. What is read is read first: where a key holds something else, nothing has been removed.
"""
    + _OF
    + """
local entries = {}
for place = 4, 6 do entries[place] = of(KEYS[place], redis.pcall('XRANGE', KEYS[place], '-', '+')) end
local fields = of(KEYS[7], redis.pcall('HKEYS', KEYS[7]))
local removed = redis.call('DEL', KEYS[1], KEYS[2])
redis.call('SET', KEYS[3], '', 'EX', ARGV[2])
for place = 4, 6 do
  for _, entry in ipairs(entries[place]) do
    if entry[2][2] == ARGV[1] then removed = removed + redis.call('XDEL', KEYS[place], entry[1]) end
  end
end
local own = ARGV[1] .. '\\0'
for _, field in ipairs(fields) do
  if string.sub(field, 1, #own) == own then redis.call('HDEL', KEYS[7], field) end
end
for place = 8, #KEYS do removed = removed + redis.call('DEL', KEYS[place]) end
return removed
"""
)

FINISH = """
-- KEYS stream. ARGV group, ids. In one step: what is acknowledged and still there would never be anybody's again.
redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, 2))
redis.call('XDEL', KEYS[1], unpack(ARGV, 2))
"""

REMOVE_ENDED = """
-- KEYS stream. ARGV group, milliseconds. Removes consumers that hold no entry and have been idle for longer; gives how many.
-- In one step, since a consumer that is removed takes its entries with it.
local removed = 0
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local of = {}
  for place = 1, #info, 2 do of[info[place]] = info[place + 1] end
  if of['pending'] == 0 and of['idle'] > tonumber(ARGV[2]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], of['name'])
    removed = removed + 1
  end
end
return removed
"""
