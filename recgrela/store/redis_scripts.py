"""Lua scripts of the Redis store. Each changes or reads one user, and runs without interruption.

KEYS are users, log, ids (append) or users, log, states (load, save, forget); ARGV begins with the user.
`recgrela.store.redis_store` describes the keys. A record begins with its time, a state with its revision and
folded, as 8 bytes each, big-endian.
"""

from __future__ import annotations

# ARGV: the user; then for each event its record and its id, "+" and the id or "".
# Returns 1 for each stored event, 0 for a duplicate.
APPEND = """
local users, log, ids, user = KEYS[1], KEYS[2], KEYS[3], ARGV[1]

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

local function insert(record)
  local before = events_until(time_of(record))
  local later = redis.call('LRANGE', log, before, -1)
  if before > 0 then redis.call('LTRIM', log, 0, before - 1) else redis.call('DEL', log) end
  push({record})
  push(later)
end

local accepted, late, pending = {}, 0, {}
local last = redis.call('LINDEX', log, -1)
last = last and time_of(last)
for i = 2, #ARGV, 2 do
  local record, id = ARGV[i], ARGV[i + 1]
  if id ~= '' and redis.call('SADD', ids, string.sub(id, 2)) == 0 then
    accepted[#accepted + 1] = 0
  else
    local time = time_of(record)
    if last and time < last then
      push(pending)
      pending = {}
      insert(record)
      late = late + 1
    else
      pending[#pending + 1] = record
      last = time
    end
    accepted[#accepted + 1] = 1
  end
end
push(pending)
redis.call('HINCRBY', users, user, late)
return accepted
"""

# ARGV: the user. Returns revision, folded, state ("" if there is none) and the records after folded.
LOAD = """
local users, log, states, user = KEYS[1], KEYS[2], KEYS[3], ARGV[1]
local revision = tonumber(redis.call('HGET', users, user) or 0)
local state = redis.call('HGET', states, user)
local folded = 0
if state and #state > 16 then
  local of, count = struct.unpack('>I8I8', state)
  if of == revision and count <= redis.call('LLEN', log) then folded = count end
end
return {revision, folded, folded > 0 and state or '', redis.call('LRANGE', log, folded, -1)}
"""

# ARGV: the user, revision, folded, state. Returns 1 if the state is kept.
SAVE = """
local users, log, states = KEYS[1], KEYS[2], KEYS[3]
local user, revision, folded, state = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
if revision ~= tonumber(redis.call('HGET', users, user) or -1) then return 0 end
local length = redis.call('LLEN', log)
if folded < 1 or folded > length then return 0 end
local stored = redis.call('HGET', states, user)
if stored and #stored > 16 then
  local of, count = struct.unpack('>I8I8', stored)
  if of == revision and count >= folded and count <= length then return 0 end
end
redis.call('HSET', states, user, state)
return 1
"""

# ARGV: the user, a damaged state. Deletes it, unless it was replaced.
FORGET = """
if redis.call('HGET', KEYS[3], ARGV[1]) == ARGV[2] then redis.call('HDEL', KEYS[3], ARGV[1]) end
"""
