"""Lua scripts of the Redis store. A script serves many users in one call, and runs without interruption.

`recgrela.store.redis_store` describes the keys. A record begins with its time, a state with its revision and
folded, as 8 bytes each, big-endian.
"""

from __future__ import annotations

# KEYS: users, then log, ids and items of each user.
# ARGV: for each user its name, the number of its events, and of each event the record, the id ("+" and the
# id, or "") and the item.
# Returns 1 for each stored event, 0 for a duplicate, in this order.
APPEND = """
local users, log, ids = KEYS[1], nil, nil

local function time_of(record)
  return (struct.unpack('>d', record))
end

local function push(records)  -- in parts, because Lua passes at most some thousands of arguments
  for first = 1, #records, 1000 do
    redis.call('RPUSH', log, unpack(records, first, math.min(first + 999, #records)))
  end
end

local function events_until(time)  -- number of events that are not later, searched from the end
  local stop = redis.call('LLEN', log)
  while stop > 0 do
    local start = math.max(0, stop - 64)
    local records = redis.call('LRANGE', log, start, stop - 1)
    for i = #records, 1, -1 do
      if time_of(records[i]) <= time then return start + i end
    end
    stop = start
  end
  return 0
end

local function merge(new)  -- the end of the log is written once, however many records are inserted
  table.sort(new, function(a, b)
    return a.time < b.time or a.time == b.time and a.arrival < b.arrival
  end)
  local before = events_until(new[1].time)
  local later = redis.call('LRANGE', log, before, -1)
  if before > 0 then redis.call('LTRIM', log, 0, before - 1) else redis.call('DEL', log) end
  local merged, next = {}, 1
  for _, record in ipairs(later) do
    local time = time_of(record)
    while next <= #new and new[next].time < time do
      merged[#merged + 1] = new[next].record
      next = next + 1
    end
    merged[#merged + 1] = record
  end
  for i = next, #new do merged[#merged + 1] = new[i].record end
  push(merged)
end

local accepted, at = {}, 1
for key = 2, #KEYS, 3 do
  log, ids = KEYS[key], KEYS[key + 1]
  local user, count = ARGV[at], tonumber(ARGV[at + 1])
  local late, new, records = 0, {}, {}
  local last = redis.call('LINDEX', log, -1)
  last = last and time_of(last)
  for i = at + 2, at + 3 * count, 3 do
    local record, id = ARGV[i], ARGV[i + 1]
    if id ~= '' and redis.call('SADD', ids, string.sub(id, 2)) == 0 then
      accepted[#accepted + 1] = 0
    else
      local time = time_of(record)
      if last and time < last then late = late + 1 else last = time end
      records[#records + 1] = record
      new[#new + 1] = {time = time, arrival = i, record = record}
      redis.call('SADD', KEYS[key + 2], ARGV[i + 2])
      accepted[#accepted + 1] = 1
    end
  end
  if late > 0 then merge(new) else push(records) end
  redis.call('HINCRBY', users, user, late)
  at = at + 2 + 3 * count
end
return accepted
"""

# KEYS: the items of each user. ARGV: for each user the number of items to look for, and the items.
# Returns for each of them 1 if the user has it, else 0.
SEEN = """
local found, at = {}, 1
for _, items in ipairs(KEYS) do
  local count = tonumber(ARGV[at])
  for i = at + 1, at + count do
    found[#found + 1] = redis.call('SISMEMBER', items, ARGV[i])
  end
  at = at + 1 + count
end
return found
"""

# KEYS: users, states, then the log of each user. ARGV: the users.
# Returns for each user revision, folded, state ("" if there is none) and the records after folded.
LOAD = """
local users, states = KEYS[1], KEYS[2]
local found = {}
for i, user in ipairs(ARGV) do
  local log = KEYS[2 + i]
  local revision = tonumber(redis.call('HGET', users, user) or 0)
  local state = redis.call('HGET', states, user)
  local folded = 0
  if state and #state > 16 then
    local of, count = struct.unpack('>I8I8', state)
    if of == revision and count <= redis.call('LLEN', log) then folded = count end
  end
  found[i] = {revision, folded, folded > 0 and state or '', redis.call('LRANGE', log, folded, -1)}
end
return found
"""

# KEYS: users, states, then the log of each user. ARGV: for each user its name, revision, folded and state.
SAVE = """
local users, states = KEYS[1], KEYS[2]
for key = 3, #KEYS do
  local at = 4 * (key - 3)
  local user, revision, folded = ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local length = redis.call('LLEN', KEYS[key])
  local keep = revision == tonumber(redis.call('HGET', users, user) or -1) and folded > 0 and folded <= length
  local stored = keep and redis.call('HGET', states, user)
  if stored and #stored > 16 then
    local of, count = struct.unpack('>I8I8', stored)
    keep = of ~= revision or count < folded or count > length
  end
  if keep then redis.call('HSET', states, user, ARGV[at + 4]) end
end
"""

# KEYS: states. ARGV: the user, a damaged state. Deletes it, unless it was replaced.
FORGET = """
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('HDEL', KEYS[1], ARGV[1]) end
"""
