-- What is put back, sent again or removed, whoever does it.

-- lease crash_error poison_error
-- -> {ids whose hint is due, ids whose artifacts are to be removed, ids to be swept}
function step.reap(lease, crash_error, poison_error)
  lease = tonumber(lease)
  local last = tonumber(redis.call('GET', P .. 'reaped_at') or now)
  redis.call('SET', P .. 'reaped_at', time(now))
  if now - last > lease / 2 then  -- Redis or every reaper was away: nobody could renew
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'running', '-inf', now + lease)) do
      redis.call('ZADD', P .. 'running', now + lease, id)
      redis.call('HSET', job(id), 'lease_until', time(now + lease))
    end
  end
  -- Those of a line whose time has come, 100 at once.
  local function late(name)
    local found = {}
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. name, '-inf', now, 'LIMIT', 0, 100)) do
      if name == 'purge' or not without_record(id) then found[#found + 1] = id end
    end
    return found
  end
  for _, id in ipairs(late('running')) do
    local crashes = redis.call('HINCRBY', job(id), 'crashes', 1)
    close_attempt(id, crash_error)
    if committing(id) then
      enqueue(id, 0)
    elseif canceling(id) then
      move(id, 'canceled')
    elseif crashes >= CRASHES then
      redis.call('HSET', job(id), 'error', poison_error)
      mark_dead(id)
      move(id, 'failed')
    else
      enqueue(id, 0)
    end
  end
  for _, id in ipairs(late('deadlines')) do
    if committing(id) then
      enqueue(id, 0)
      redis.call('ZREM', P .. 'deadlines', id)
    else
      move(id, 'expired')
    end
  end
  local due = late('send')
  for _, id in ipairs(due) do
    regain_place(id)
    local sends = redis.call('HINCRBY', job(id), 'sends', 1)
    redis.call('ZADD', P .. 'send', now + math.min(RESEND_MAX, RESEND * 2 ^ (sends - 1)), id)
  end
  return {due, late('purge'), late('sweep')}
end

-- What no manifest names is gone.
function step.swept(id) redis.call('ZREM', P .. 'sweep', id) end

-- again: seconds after which what an attempt was still uploading is removed, too
function step.purged(id, again)
  local h = get(id, 'tenant', 'state', 'batch', 'fence')
  if h[4] and tonumber(h[4]) > 0 then
    redis.call('ZADD', P .. 'purge', now + tonumber(again), id)
  elseif tonumber(redis.call('ZSCORE', P .. 'purge', id) or 0) <= now then  -- else another was first
    redis.call('ZREM', P .. 'purge', id)
  end
  redis.call('ZREM', P .. 'sweep', id)
  if h[1] then
    redis.call('ZREM', P .. 'dead:' .. h[1], id)
    redis.call('ZREM', P .. 'jobs:' .. h[1] .. ':' .. h[2], id)
  end
  redis.call('DEL', job(id), P .. 'pictures:' .. id, P .. 'log:' .. id)
  if h[3] then leave_batch(h[3], id) end
end
