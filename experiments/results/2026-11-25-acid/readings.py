"""Readings of the reference's counts of A2CiD2, apart from the Rust code. Needs numpy.

`python readings.py readings` prints, for 16 nodes, starts and measures: mean over streams of the first
fall below a millionth / of the last / of the mean over streams. `python readings.py dimensions` prints the
first fall of the mean error of x in 1, 2 and 4 dimensions.
"""
import numpy as np, sys
def graph(f,n):
    if f=='ring': E=[(i,(i+1)%n) for i in range(n)]
    if f=='line': E=[(i,i+1) for i in range(n-1)]
    if f=='star': E=[(0,i) for i in range(1,n)]
    if f=='complete': E=[(i,j) for i in range(n) for j in range(i+1,n)]
    if f=='grid': E=[(4*r+c,4*r+c+1) for r in range(4) for c in range(3)]+[(4*r+c,4*r+c+4) for r in range(3) for c in range(4)]
    if f=='barbell': E=[(i,j) for i in range(8) for j in range(i+1,8)]+[(i+8,j+8) for i in range(8) for j in range(i+1,8)]+[(7,8)]
    if f=='exponential': 
        E=[]
        for i in range(n):
            for k in (1,2,4): E.append((i,(i+k)%n))
        E+= [(i,i+8) for i in range(8)]*2
    deg=np.zeros(n)
    for a,b in E: deg[a]+=1;deg[b]+=1
    w=np.array([(1/deg[a]+1/deg[b])/2 for a,b in E])
    return np.array(E),w
def chi(E,w,n):
    L=np.zeros((n,n))
    for (a,b),x in zip(E,w): L[a,a]+=x;L[b,b]+=x;L[a,b]-=x;L[b,a]-=x
    ev=np.linalg.eigvalsh(L); P=np.linalg.pinv(L)
    c2=max(.5*(P[a,a]+P[b,b]-2*P[a,b]) for a,b in E)
    return 1/ev[1],c2
def run(f,n,accel,S=40,dim=16,start='normal',unmixed=False,seed=0,comm_max=400,poisson=True):
    """returns dict measure-> array [S, steps] of errors, comm per node per step"""
    rng=np.random.default_rng(seed)
    E,w=graph(f,n); c1,c2=chi(E,w,n)
    eta,at=(0.5/np.sqrt(c1*c2),0.5*np.sqrt(c1/c2)) if accel else (0.,.5)
    R=w.sum(); p=w/R
    x=rng.normal(size=(S,n,dim))
    if start=='onehot': x[:]=0; x[:,0]=1
    if start=='linear': x[:]=np.arange(n)[None,:,None]
    x-=x.mean(1,keepdims=True); xt=x.copy(); last=np.zeros((S,n)); t=np.zeros(S)
    steps=int(comm_max*n/2); ar=np.arange(S)
    names=['mixed','lazy','both','worst','tilde']
    out={k:np.empty((steps+1,S)) for k in names}
    ever=steps//4000+1
    def adv(x,xt,dt):
        d=np.exp(-2*eta*dt)[...,None]; m=(x+xt)/2; h=d*(x-xt)/2
        return m+h,m-h
    def rec(k):
        X,XT=adv(x,xt,t[:,None]-last)
        X=X-X.mean(1,keepdims=True); XT=XT-XT.mean(1,keepdims=True)
        sq=(X**2).sum(2); out['mixed'][k]=sq.mean(1); out['worst'][k]=sq.max(1)
        tt=(XT**2).sum(2).mean(1); out['both'][k]=out['mixed'][k]+tt; out['tilde'][k]=tt
        l=x-x.mean(1,keepdims=True); out['lazy'][k]=(l**2).sum(2).mean(1)
    rec(0)
    for k in range(1,steps+1):
        t=t+(rng.exponential(1/R,S) if poisson else 1/R)
        e=rng.choice(len(E),size=S,p=p); i,j=E[e,0],E[e,1]
        xi,xti,xj,xtj=x[ar,i],xt[ar,i],x[ar,j],xt[ar,j]
        ui,uj=xi,xj
        xi,xti=adv(xi,xti,t-last[ar,i]); xj,xtj=adv(xj,xtj,t-last[ar,j])
        d=(ui-uj) if unmixed else (xi-xj)
        x[ar,i]=xi-d/2; xt[ar,i]=xti-at*d; x[ar,j]=xj+d/2; xt[ar,j]=xtj+at*d
        last[ar,i]=t; last[ar,j]=t
        rec(k)
    return out,2*np.arange(steps+1)/n
def cross(err,c):
    rel=err/err[0]
    first=np.array([c[np.argmax(rel[:,s]<=1e-6)] if (rel[:,s]<=1e-6).any() else np.nan for s in range(err.shape[1])])
    lastc=np.array([c[min(np.max(np.nonzero(rel[:,s]>1e-6)[0])+1,len(c)-1)] for s in range(err.shape[1])])
    m=(err/err[0]).mean(1); mf=c[np.argmax(m<=1e-6)] if (m<=1e-6).any() else np.nan
    ml=c[min(np.max(np.nonzero(m>1e-6)[0])+1,len(c)-1)]
    root=np.array([c[np.argmax(rel[:,s]<=1e-12)] if (rel[:,s]<=1e-12).any() else np.nan for s in range(err.shape[1])])
    return dict(first=first.mean(),last=lastc.mean(),ofmean=mf,ofmean_last=ml,sd=first.std())
REF={'ring':(156,68),'line':(532,121),'grid':(62,42),'star':(31.8,29.8),'exponential':(25.8,26.),'complete':(23.6,23.6),'barbell':(395,158)}
def readings():
    for dim,start in ((16,'normal'),(1,'normal'),(1,'onehot'),(1,'linear')):
        for f,(pl,ac) in REF.items():
            S=24 if dim>1 else 40
            res=[]
            o,c=run(f,16,False,S,dim,start,comm_max=1.5*pl)
            r=cross(o['mixed'],c); res.append(f"plain {pl}: first {r['first']:.1f} ofmean {r['ofmean']:.1f}")
            for um in (False,True):
                o,c=run(f,16,True,S,dim,start,unmixed=um,comm_max=2.2*ac)
                txt=[]
                for m in ('mixed','lazy','both','worst','tilde'):
                    r=cross(o[m],c); txt.append(f"{m} {r['first']:.1f}/{r['last']:.1f}/{r['ofmean_last']:.1f}")
                res.append(f"{'unmixed' if um else 'acid'} {ac}: "+', '.join(txt))
            print(dim,start,f,' | '.join(res),flush=True)
def fast(f,n,accel,S,dim,unmixed,comm_max,seed=1):
    rng=np.random.default_rng(seed); E,w=graph(f,n); c1,c2=chi(E,w,n)
    eta,at=(0.5/np.sqrt(c1*c2),0.5*np.sqrt(c1/c2)) if accel else (0.,.5)
    R=w.sum(); cw=np.cumsum(w/R); x=rng.normal(size=(S,n,dim)); xt=x.copy(); last=np.zeros((S,n)); t=np.zeros(S); ar=np.arange(S)
    every=max(1,n//16); first=np.full(S,np.nan)
    def err():
        d=np.exp(-2*eta*(t[:,None]-last))[...,None]; X=(x+xt)/2+d*(x-xt)/2
        X=X-X.mean(1,keepdims=True); return (X**2).sum((1,2))
    e0=err()
    for k in range(1,int(comm_max*n/2)):
        t=t+rng.exponential(1/R,S); e=np.minimum(np.searchsorted(cw,rng.random(S)),len(E)-1); i,j=E[e,0],E[e,1]
        xi,xti,xj,xtj=x[ar,i],xt[ar,i],x[ar,j],xt[ar,j]; ui,uj=xi,xj
        def adv(a,b,dt):
            d=np.exp(-2*eta*dt)[:,None]; m=(a+b)/2; h=d*(a-b)/2; return m+h,m-h
        xi,xti=adv(xi,xti,t-last[ar,i]); xj,xtj=adv(xj,xtj,t-last[ar,j])
        d=(ui-uj) if unmixed else (xi-xj)
        x[ar,i]=xi-d/2; xt[ar,i]=xti-at*d; x[ar,j]=xj+d/2; xt[ar,j]=xtj+at*d; last[ar,i]=t; last[ar,j]=t
        if k%every==0:
            hit=np.isnan(first)&(err()<=1e-6*e0); first[hit]=2*k/n
            if not np.isnan(first).any(): break
    return np.nanmean(first), np.nanstd(first), np.isnan(first).sum()
def dimensions():
    for f,n,(pl,ac) in [(k,16,v) for k,v in REF.items()]+[('ring',64,(2117,278))]:
        for dim in (1,2,4):
            S=100 if n==16 else 12
            s=f"{f}{n} dim {dim}: "
            if n==16: m,d,z=fast(f,n,False,S,dim,False,2.5*pl); s+=f"plain {pl}: {m:.1f} ({100*(m/pl-1):+.0f}%) sd {d:.1f} | "
            for um in (False,True):
                m,d,z=fast(f,n,True,S,dim,um,3*ac); s+=f"{'unmixed' if um else 'mixed'} {ac}: {m:.1f} ({100*(m/ac-1):+.0f}%) sd {d:.1f} miss {z} | "
            print(s,flush=True)
if __name__=='__main__':
    {'readings': readings, 'dimensions': dimensions}[sys.argv[1]]()
